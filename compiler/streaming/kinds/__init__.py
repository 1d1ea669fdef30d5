"""Kinds of stream nodes that one family of ops needs; those that many need are in ir.py."""
