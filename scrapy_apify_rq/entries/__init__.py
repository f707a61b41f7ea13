"""What an entry of the queue looks like, and how a Scrapy request becomes one and comes back."""
