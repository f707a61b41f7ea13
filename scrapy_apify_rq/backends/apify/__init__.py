"""The queue of an Apify account, over HTTP."""
