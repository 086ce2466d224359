"""Stand-ins for Google Cloud's programs: gcloud, kubectl, gsutil and the metadata server.

They are real executables on PATH. They share one state, a folder that `world` reads and writes, and take the flags that
the real programs take. Hosts and pods are processes of this machine. `pretended.PretendedCloud` is what tests use.
"""
