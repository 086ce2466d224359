"""The dialogue set of supervised fine-tuning (paper, section 3.3): concatenated, self-instructed and text dialogues."""
