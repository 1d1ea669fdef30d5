"""Offline to streaming: what each op does to time, one rule file per op family."""
