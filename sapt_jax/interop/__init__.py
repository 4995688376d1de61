"""Pools to and from other programs: the authors' PyTorch code (public.py) and peft (peft.py)."""
