package block

import (
	"fmt"
	"math/bits"
)

// Limits of a chunk. Below 4 KiB an index would outgrow what it describes;
// above 4 MiB a single changed byte costs too much, and the repository adapter
// could no longer store a chunk as one content.
const (
	MinChunkSize = 4 << 10
	MaxChunkSize = 4 << 20
)

// MaxVolumeSize is 1 PiB: beyond every volume that exists, and small enough
// that no sum of offsets and lengths below overflows.
const MaxVolumeSize = 1 << 50

// Geometry is the size of a volume and how it is cut into chunks. The zero
// value is not usable; see NewGeometry.
type Geometry struct {
	size  int64
	chunk int64
}

// NewGeometry checks size and chunk size and combines them.
func NewGeometry(size, chunkSize int64) (Geometry, error) {
	if size <= 0 || size > MaxVolumeSize {
		return Geometry{}, fmt.Errorf("volume size is %d bytes, want 1 to %d", size, int64(MaxVolumeSize))
	}
	if err := CheckChunkSize(chunkSize); err != nil {
		return Geometry{}, err
	}
	return Geometry{size: size, chunk: chunkSize}, nil
}

// CheckChunkSize reports an error unless the chunk size is a power of two
// between MinChunkSize and MaxChunkSize.
func CheckChunkSize(chunkSize int64) error {
	if chunkSize < MinChunkSize || chunkSize > MaxChunkSize || bits.OnesCount64(uint64(chunkSize)) != 1 {
		return fmt.Errorf("chunk size is %d bytes, want a power of two from %d to %d", chunkSize, MinChunkSize, MaxChunkSize)
	}
	return nil
}

// Size is the exact size of the volume.
func (g Geometry) Size() int64 { return g.size }

// ChunkSize is the length of every chunk but perhaps the last.
func (g Geometry) ChunkSize() int64 { return g.chunk }

// Chunks is the number of chunks, the partial one at the end included.
func (g Geometry) Chunks() int64 { return (g.size + g.chunk - 1) / g.chunk }

// PaddedSize is the size rounded up to whole chunks.
func (g Geometry) PaddedSize() int64 { return g.Chunks() * g.chunk }

// ChunkAt is the chunk that holds the byte at offset.
func (g Geometry) ChunkAt(offset int64) int64 { return offset / g.chunk }

// Extent is the range of volume bytes that a chunk holds; it ends at the
// volume's size. The chunk must be one of the volume's.
func (g Geometry) Extent(chunk int64) Extent {
	off := chunk * g.chunk
	return Extent{Offset: off, Length: min(g.chunk, g.size-off)}
}

// CheckChunk reports an error unless the chunk is one of the volume's.
func (g Geometry) CheckChunk(chunk int64) error {
	if chunk < 0 || chunk >= g.Chunks() {
		return fmt.Errorf("chunk %d is outside the volume of %d chunks", chunk, g.Chunks())
	}
	return nil
}
