"""An ordinary Scrapy project, and the small shop that it crawls."""
