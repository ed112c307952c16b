"""The first minutes on a GPU: what it computes, how fast, and how long the tables will take. `make gpu`."""
