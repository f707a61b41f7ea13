"""The part of the Apify API that crawls and Actors need, over HTTP, from the embedded file."""
