"""Reads scheduled HLO text: its instructions, loops, costs and collectives."""
