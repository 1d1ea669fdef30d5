"""The command line, and what needs the compiler and the runtime together: proving an artefact, bench, demo."""
