"""One recipe per kind of hardware: the mesh, the precision and the compiler options of a stage."""
