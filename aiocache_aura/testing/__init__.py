"""What tests, benchmarks and the demo need beside the library: a real server of their own."""
