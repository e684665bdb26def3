"""Tools for the people who run studies: what is wrong, what is needed elsewhere, what precision costs. No Dagster."""
