"""The quickstart's records: scenes of drawings and words, and every task about them."""
