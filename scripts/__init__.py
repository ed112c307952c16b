"""What is run by hand or by make: tables, studies, benchmarks."""
