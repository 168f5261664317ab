"""Local disks and object stores behind one face, and scratch folders."""
