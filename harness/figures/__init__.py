"""From the rows of a run to figures: reading, statistics, tables, comparisons, reports and plots."""
