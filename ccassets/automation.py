"""Automation: what runs by itself once its switch is turned on in the UI. Everything here ships switched off."""

import dagster as dg

from ccassets.study import Study


def study_schedules(study: Study) -> list[dg.ScheduleDefinition]:
    return []


def study_sensors(study: Study) -> list[dg.SensorDefinition]:
    return []
