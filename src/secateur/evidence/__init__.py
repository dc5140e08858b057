"""What one streaming pass over calibration images leaves behind: sums, never activations."""

from secateur.evidence.kinds import EvidenceKind, Sums, evidence_kinds
from secateur.evidence.observe import Evidence, observe

__all__ = ["Evidence", "EvidenceKind", "Sums", "evidence_kinds", "observe"]
