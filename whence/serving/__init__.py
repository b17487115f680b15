"""The service that answers questions: an HTTP interface and a page, over a model and the index of its training set."""
