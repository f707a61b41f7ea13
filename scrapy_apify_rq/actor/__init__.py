"""What an Actor run of the Apify platform provides to a crawl."""
