"""From records to batches: readers, text formats, packing, mixture, and the loader."""
