package driver

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/options"
)

// spoil breaks a rule in a message. The rules about several messages are broken
// where these are sent.
func spoil(m *message, rule options.WrongBlocks, first bool) {
	switch rule {
	case options.Right, options.Overlap, options.Beyond:
	case options.Descending:
		slices.Reverse(m.blocks)
	case options.Empty:
		if first && len(m.blocks) > 0 {
			m.blocks[0].SizeBytes = 0
		}
	case options.WrongCapacity:
		m.capacity *= 2
	case options.WrongType:
		m.blockType = csi.BlockMetadataType_UNKNOWN
	}
}
