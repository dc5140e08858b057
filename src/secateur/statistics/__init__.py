"""What one streaming pass over calibration images leaves behind: sums, never activations."""

from secateur.statistics.observe import Evidence, observe
from secateur.statistics.registry import EvidenceKind, Sums, evidence_kinds

__all__ = ["Evidence", "EvidenceKind", "Sums", "evidence_kinds", "observe"]
