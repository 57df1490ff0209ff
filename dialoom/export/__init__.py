"""From a run's folder to what other tools read: data sets in the layouts of the field, models with their cards.

`trained` finds what a run's model learned from, `layouts` puts it into rows, `cards` writes what stands beside them.
Nothing here changes a run.
"""

from dialoom.export.write import LAYOUTS, export_run

__all__ = ["LAYOUTS", "export_run"]
