"""What became of each site between two reports, as text, as a page and as Markdown."""
