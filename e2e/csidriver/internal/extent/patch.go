package extent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Patch is what a copy lacks of its source in one range.
type Patch struct {
	Range
	// Data is the content; nil stands for a hole.
	Data []byte
}

// Missing returns what must be applied to a reflink copy so that it equals the
// source as it is now. Both files have the same size.
func Missing(source, target File) ([]Patch, error) {
	sourceMap, err := Map(source.File, 0, source.Size)
	if err != nil {
		return nil, err
	}
	targetMap, err := Map(target.File, 0, target.Size)
	if err != nil {
		return nil, err
	}
	var patches []Patch
	for _, differing := range Differing(targetMap, sourceMap, 0, source.Size) {
		for start := differing.Start; start < differing.End; {
			rest, piece, end := pieceAt(sourceMap, start, differing.End)
			sourceMap = rest
			patch, err := readPatch(source, piece, Range{Start: start, End: end})
			if err != nil {
				return nil, err
			}
			patches = append(patches, patch)
			start = end
		}
	}
	return patches, nil
}

// readPatch reads a range of source that one extent covers, or none.
func readPatch(source File, piece *Extent, r Range) (Patch, error) {
	if piece == nil || piece.Unwritten {
		return Patch{Range: r}, nil
	}
	data, err := readPiece(source, nil, r)
	return Patch{Range: r, Data: data}, err
}

// Apply writes the patch to a file.
func (p Patch) Apply(file *os.File) error {
	if p.Data == nil {
		mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
		if err := unix.Fallocate(int(file.Fd()), mode, p.Start, p.End-p.Start); err != nil {
			return fmt.Errorf("punch hole of %d bytes into %s at %d: %w", p.End-p.Start, file.Name(), p.Start, err)
		}
		return nil
	}
	if _, err := file.WriteAt(p.Data, p.Start); err != nil {
		return fmt.Errorf("write patch: %w", err)
	}
	return nil
}
