"""Runs side by side: curves, intervals, sample efficiency, time, videos, on one HTML page."""
