// Package block holds exact arithmetic on block addresses: the Extent, the
// Geometry of a volume image (its size cut into chunks), and the Bitmap of the
// pages that a backup has to read.
//
// All quantities are bytes unless a name says otherwise. The package is pure:
// it knows nothing of devices, repositories or Kubernetes.
package block

import "fmt"

// Extent is the half-open byte range [Offset, Offset+Length) of a volume.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End is the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// String formats the extent as "[offset,end)".
func (e Extent) String() string { return fmt.Sprintf("[%d,%d)", e.Offset, e.End()) }

// CheckWithin reports an error unless the extent is not empty and lies inside
// a volume of size bytes. Bad extents are errors, never clamped.
func (e Extent) CheckWithin(size int64) error {
	switch {
	case e.Length <= 0:
		return fmt.Errorf("extent at %d has length %d, want more than 0", e.Offset, e.Length)
	case e.Offset < 0 || e.Offset > size-e.Length:
		return fmt.Errorf("extent %s is outside the volume of %d bytes", e, size)
	}
	return nil
}
