"""The parts of self-contained HTML reports: page, tables, charts, and pictures with regions drawn on them."""
