"""Measure how good a system is: metrics, statistics, readers of rationales, results, comparisons."""
