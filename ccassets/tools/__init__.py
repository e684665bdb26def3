"""Tools for people who run studies: doctor, new studies, offline bundles, precision drift, certificates. No Dagster."""
