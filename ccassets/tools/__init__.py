"""Tools for the people who run studies: doctor, new studies, offline bundles, precision drift. No Dagster."""
