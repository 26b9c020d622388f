package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/blockmover/blockmover/internal/repository"
)

// Verification is what `image verify --json` prints of an image.
type Verification struct {
	SnapshotID repository.SnapshotID `json:"snapshotID"`
	// Volume is "" for an image that nothing is known of.
	Volume string `json:"volume,omitempty"`
	OK     bool   `json:"ok"`
	// Size is that of the volume in bytes, and DamagedBytes of it cannot be read.
	Size         int64 `json:"size"`
	DamagedBytes int64 `json:"damagedBytes"`
	// Damage has the first ranges that cannot be read. Error is set if the image cannot be opened.
	Damage []DamagedRange `json:"damage,omitempty"`
	Error  string         `json:"error,omitempty"`
}

// DamagedRange is a range that cannot be read, in bytes.
type DamagedRange struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Error  string `json:"error"`
}

// printer prints what is found out about one image.
type printer interface {
	// unreadable is called for an image that cannot be opened.
	unreadable(err error) error
	damaged(d damage) error
	// end is called last for an image that was read.
	end(size, damaged int64, ranges int) error
}

type textPrinter struct {
	out   io.Writer
	image target
}

// name is the ID and the volume of the image.
func (p *textPrinter) name() string {
	if p.image.volume == (repository.VolumeKey{}) {
		return string(p.image.id)
	}
	return fmt.Sprintf("%s  %s", p.image.id, p.image.volume)
}

func (p *textPrinter) unreadable(err error) error {
	_, err = fmt.Fprintf(p.out, "%s  damaged: %s\n", p.name(), OneLine(err))
	return err
}

func (p *textPrinter) damaged(d damage) error {
	_, err := fmt.Fprintf(p.out, "%s  damaged in %s: %s\n", p.name(), d.Extent, OneLine(d.cause))
	return err
}

func (p *textPrinter) end(size, damaged int64, ranges int) (err error) {
	if ranges > 0 {
		_, err = fmt.Fprintf(p.out, "%s  damaged: %s of %s cannot be read, in %d ranges\n", p.name(), formatBytes(damaged), formatBytes(size), ranges)
	} else {
		_, err = fmt.Fprintf(p.out, "%s  ok, %s\n", p.name(), formatBytes(size))
	}
	return err
}

type jsonPrinter struct {
	out    io.Writer
	result Verification
}

func (p *jsonPrinter) unreadable(err error) error {
	p.result.Error = OneLine(err)
	return json.NewEncoder(p.out).Encode(p.result)
}

func (p *jsonPrinter) damaged(d damage) error {
	p.result.Damage = append(p.result.Damage, DamagedRange{d.Offset, d.Length, OneLine(d.cause)})
	return nil
}

func (p *jsonPrinter) end(size, damaged int64, ranges int) error {
	p.result.Size, p.result.DamagedBytes, p.result.OK = size, damaged, ranges == 0
	return json.NewEncoder(p.out).Encode(p.result)
}
