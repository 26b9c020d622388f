package disk

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"strings"
)

// volumes are the physical volumes that were found.
type volumes []*physicalVolume

// parts returns the logical volumes of all groups. A volume that cannot be read has its reason.
func (vs volumes) parts() ([]Part, error) {
	groups := map[string]*physicalVolume{} // by ID: the member with the newest metadata
	byID := map[string]*physicalVolume{}
	var order []string
	var parts []Part
	for _, v := range vs {
		byID[v.id] = v
		if v.group == nil {
			continue
		}
		id := v.group.text("id")
		if newest := groups[id]; newest == nil || v.seqno > newest.seqno {
			if newest == nil {
				order = append(order, id)
			}
			groups[id] = v
		}
	}
	names := map[string]bool{}
	for _, id := range order {
		found, err := groupParts(groups[id].name, groups[id].group, byID)
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, err
		}
		if err != nil {
			found = []Part{{Name: groups[id].name, Kind: kindLVM, Reason: err.Error()}}
		}
		for _, p := range found {
			if names[p.Name] { // two groups of one name
				p.Name += "@" + id
			}
			names[p.Name] = true
			parts = append(parts, p)
		}
	}
	if len(vs) > 0 && len(parts) == 0 {
		parts = append(parts, Part{Name: Whole, Size: vs[0].size, Kind: kindLVM, Reason: "it is a physical volume of LVM without logical volumes"})
	}
	return parts, nil
}

// member is a physical volume of a group, and where its extents begin.
type member struct {
	volume *physicalVolume // nil if it is not on this disk
	start  int64
	count  int64
}

func groupParts(name string, group *section, byID map[string]*physicalVolume) ([]Part, error) {
	extent, err := group.number("extent_size", 1<<31) // in sectors
	if err != nil || extent == 0 {
		return nil, errors.Join(err, ErrDamaged)
	}
	extent *= sector
	members := map[string]member{}
	if all := group.sections["physical_volumes"]; all != nil {
		for _, alias := range all.names {
			s := all.sections[alias]
			start, err := s.number("pe_start", math.MaxInt64/sector)
			if err != nil {
				return nil, err
			}
			count, err := s.number("pe_count", 1<<32)
			if err != nil {
				return nil, err
			}
			members[alias] = member{byID[withoutDashes(s.text("id"))], start * sector, count}
		}
	}
	all := group.sections["logical_volumes"]
	if all == nil {
		return nil, nil
	}
	copies := map[string]bool{} // volumes that hold the differences of a snapshot
	for _, lv := range all.sections {
		for _, s := range lv.sections {
			copies[s.text("cow_store")] = true
		}
	}
	var parts []Part
	for _, lv := range all.names {
		s := all.sections[lv]
		if !s.has("status", "VISIBLE") {
			continue
		}
		p := Part{Name: name + "/" + lv, Kind: ""}
		m, err := mapVolume(s, extent, members)
		switch {
		case copies[lv]:
			p.Reason = "it is a snapshot of LVM: restore the volume, and activate it there"
		case err != nil:
			p.Reason = strings.TrimPrefix(err.Error(), ErrDamaged.Error()+": ")
		default:
			p.Content = m
		}
		if p.Size = sizeOf(s, extent); p.Reason != "" {
			p.Kind = kindLVM
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// sizeOf is the size of a volume, or 0 if its segments make no sense.
func sizeOf(lv *section, extent int64) int64 {
	sum := int64(0)
	for _, s := range lv.sections {
		n, err := s.number("extent_count", 1<<32)
		if err != nil || n > (math.MaxInt64-sum)/extent {
			return 0
		}
		sum += n * extent
	}
	return sum
}

// mapped is a logical volume: segments, in ascending order, without gaps.
type mapped struct {
	size     int64
	segments []segment
}

type segment struct {
	start, length int64
	// stripe is how many bytes are on one stripe before the next one follows. It is the length if there is one stripe.
	stripe  int64
	stripes []stripe
}

type stripe struct {
	volume *physicalVolume
	start  int64
}

// mapVolume returns the mapping of a volume, or says why it cannot be read.
func mapVolume(lv *section, extent int64, members map[string]member) (*mapped, error) {
	m := &mapped{}
	for _, name := range lv.names {
		s := lv.sections[name]
		if !strings.HasPrefix(name, "segment") {
			continue
		}
		first, err := s.number("start_extent", 1<<32)
		if err != nil {
			return nil, err
		}
		count, err := s.number("extent_count", 1<<32)
		if err != nil {
			return nil, err
		}
		if count == 0 || first > math.MaxInt64/extent-count {
			return nil, fmt.Errorf("%w: a segment has %d extents from %d on", ErrDamaged, count, first)
		}
		seg := segment{start: first * extent, length: count * extent}
		if err := seg.mapTo(s, extent, members); err != nil {
			return nil, err
		}
		m.segments = append(m.segments, seg)
	}
	sort.Slice(m.segments, func(i, j int) bool { return m.segments[i].start < m.segments[j].start })
	for _, s := range m.segments {
		if s.start != m.size {
			return nil, fmt.Errorf("%w: its segments have a gap, or overlap", ErrDamaged)
		}
		m.size += s.length
	}
	if len(m.segments) == 0 {
		return nil, fmt.Errorf("%w: it has no segments", ErrDamaged)
	}
	return m, nil
}

func (g *segment) mapTo(s *section, extent int64, members map[string]member) error {
	kind := s.text("type")
	if kind != "striped" && kind != "linear" {
		return fmt.Errorf("it is a volume of kind %q of LVM, and only linear and striped ones can be read: restore the volume, and activate it there", kind)
	}
	list, _ := s.values["stripes"].([]any)
	if count, err := s.number("stripe_count", 1<<16); err != nil || count == 0 || int64(len(list)) != 2*count {
		return fmt.Errorf("%w: a segment has not as many stripes as it says", ErrDamaged)
	}
	count := int64(len(list) / 2)
	g.stripe = g.length
	if count > 1 {
		size, err := s.number("stripe_size", 1<<32)
		if err != nil {
			return err
		}
		if g.stripe = size * sector; g.stripe == 0 || g.length%(g.stripe*count) != 0 {
			return fmt.Errorf("%w: a segment of %d bytes has %d stripes of %d bytes", ErrDamaged, g.length, count, g.stripe)
		}
	}
	for i := 0; i < len(list); i += 2 {
		at, err := findStripe(list[i], list[i+1], g.length/count, extent, members)
		if err != nil {
			return err
		}
		g.stripes = append(g.stripes, at)
	}
	return nil
}

// findStripe returns where a stripe of length bytes begins: at an extent of a physical volume.
func findStripe(volume, place any, length, extent int64, members map[string]member) (stripe, error) {
	alias, _ := volume.(string)
	first, isNumber := place.(int64)
	m, known := members[alias]
	switch {
	case !known || !isNumber || first < 0 || first > m.count:
		return stripe{}, fmt.Errorf("%w: a segment is on %v of volume %q, which is not in the group", ErrDamaged, place, alias)
	case m.volume == nil:
		return stripe{}, fmt.Errorf("a part of it is on physical volume %s, which is on another disk: restore the volumes, and activate it there", alias)
	}
	at := stripe{m.volume, m.start + first*extent}
	if length > m.volume.size-at.start || at.start < 0 || first > math.MaxInt64/extent {
		return stripe{}, fmt.Errorf("%w: a segment is outside of physical volume %s", ErrDamaged, alias)
	}
	return at, nil
}

// ReadAt implements io.ReaderAt.
func (m *mapped) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read logical volume at %d: negative offset", off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		i := sort.Search(len(m.segments), func(i int) bool { return m.segments[i].start+m.segments[i].length > at })
		if i == len(m.segments) {
			return done, io.EOF
		}
		volume, where, length := m.segments[i].find(at - m.segments[i].start)
		length = min(length, int64(len(p)-done))
		n, err := volume.content.ReadAt(p[done:done+int(length)], where)
		done += n
		if int64(n) < length {
			return done, fmt.Errorf("read logical volume at %d: %w", at, err)
		}
	}
	return done, nil
}

// find returns where a byte of the segment is, and how many follow it there.
func (g *segment) find(off int64) (volume *physicalVolume, at, length int64) {
	row, within := off/g.stripe, off%g.stripe
	n := int64(len(g.stripes))
	s := g.stripes[row%n]
	return s.volume, s.start + row/n*g.stripe + within, g.stripe - within
}
