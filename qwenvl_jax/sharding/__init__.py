"""How parameters and batches are split over a mesh of devices."""
