"""Everything this process knows about the queue, between Scrapy and the backend."""
