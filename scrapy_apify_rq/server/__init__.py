"""The request-queue part of the Apify API over HTTP, served from the embedded file."""
