"""What Scrapy calls: the scheduler, its two middlewares, and what belongs to one crawl."""
