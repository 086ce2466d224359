"""The records of the quickstart: scenes made of drawings and words, with every task asked about them."""
