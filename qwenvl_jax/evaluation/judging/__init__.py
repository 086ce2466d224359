"""A language model that scores answers: the judge of TouchStone."""
