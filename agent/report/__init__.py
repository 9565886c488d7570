"""Diagnoses for people (``terminal``) and for programs (``document``)."""
