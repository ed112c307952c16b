"""The curvature as other libraries take it: laplace-torch and asdl."""
