"""Predicts a run before hardware is rented: compiled ahead of time, read from the HLO, priced by the chip."""
