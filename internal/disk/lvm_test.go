package disk_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/disk"
)

// lvm runs the tools of LVM on loop devices, without the device mapper.
type lvm struct {
	t       testing.TB
	devices []string
}

func newLVM(t testing.TB, images ...string) *lvm {
	t.Helper()
	l := &lvm{t: t}
	for _, image := range images {
		l.devices = append(l.devices, attach(t, image))
	}
	t.Setenv("LVM_SUPPRESS_FD_WARNINGS", "1")
	return l
}

func (l *lvm) run(name string, args ...string) string {
	l.t.Helper()
	filter := ""
	for _, d := range l.devices {
		filter += fmt.Sprintf("%q,", "a|^"+d+"$|")
	}
	config := fmt.Sprintf(`global{activation=0} activation{udev_sync=0 udev_rules=0 monitoring=0} devices{use_devicesfile=0 filter=[%s"r|.*|"]} backup{backup=0 archive=0}`, filter)
	return tool(l.t, "", name, append([]string{"--config", config}, args...)...)
}

func (l *lvm) create(args ...string) {
	l.t.Helper()
	l.run("lvcreate", append([]string{"-an", "-Zn", "-Wn"}, args...)...)
}

// fill writes the place of each extent in a volume into its first bytes, where lvs says that the extent is.
func (l *lvm) fill(volume string, images map[string]string) (extents int) {
	l.t.Helper()
	start := map[string]int64{}
	for line := range strings.Lines(l.run("pvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "pv_name,pe_start")) {
		fields := strings.Fields(line)
		start[fields[0]] = number(l.t, fields[1])
	}
	size := number(l.t, strings.TrimSpace(l.run("vgs", "--noheadings", "--nosuffix", "--units", "b", "-o", "vg_extent_size")))
	for line := range strings.Lines(l.run("lvs", "--noheadings", "-O", "seg_start", "-o", "seg_pe_ranges", volume)) {
		device, ranges, _ := strings.Cut(strings.TrimSpace(line), ":")
		first, last, _ := strings.Cut(ranges, "-")
		for e := number(l.t, first); e <= number(l.t, last); e++ {
			write(l.t, images[device], start[device]+e*size, fmt.Sprintf("%s %4d", mark, extents))
			extents++
		}
	}
	require.Positive(l.t, extents)
	return extents
}

func number(t testing.TB, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return n
}

func byName(parts []disk.Part) map[string]disk.Part {
	m := map[string]disk.Part{}
	for _, p := range parts {
		m[p.Name] = p
	}
	return m
}

// TestLVM compares with what lvs says of volumes that are linear, in pieces, striped, and that can't be read.
func TestLVM(t *testing.T) {
	first, second := makeDisk(t, 128*mib), makeDisk(t, 64*mib)
	l := newLVM(t, first, second)
	// The ring of the metadata is short, so that it wraps.
	l.run("pvcreate", "--metadatasize", "64k", l.devices[0])
	l.run("pvcreate", l.devices[1])
	l.run("vgcreate", "-s", "1m", "vg0", l.devices[0])
	l.create("-l", "3", "-n", "root", "vg0")
	l.create("-l", "5", "-n", "home", "vg0")
	l.run("lvextend", "-l", "+2", "vg0/root")
	for n := range 8 {
		l.run("vgchange", "--addtag", fmt.Sprintf("tag%d_%s", n, strings.Repeat("x", 1000)), "vg0")
	}
	images := map[string]string{l.devices[0]: first, l.devices[1]: second}
	want := map[string]int{"vg0/root": l.fill("vg0/root", images), "vg0/home": l.fill("vg0/home", images)}
	require.Equal(t, 5, want["vg0/root"])

	found := byName(find(t, first))
	require.Len(t, found, 2)
	for name, extents := range want {
		p := found[name]
		require.Empty(t, p.Reason)
		require.Equal(t, int64(extents)*mib, p.Size)
		b := make([]byte, p.Size)
		_, err := p.Content.ReadAt(b, 0)
		require.NoError(t, err)
		for e := range extents {
			require.Equal(t, fmt.Sprintf("%s %4d", mark, e), string(b[e*mib:][:len(mark)+5]))
		}
	}

	l.run("vgextend", "vg0", l.devices[1])
	l.create("-l", "4", "-n", "far", "vg0", l.devices[1])
	l.create("-l", "4", "--type", "striped", "-i", "2", "-n", "both", "vg0")
	found = byName(find(t, first))
	require.Len(t, found, 4)
	require.Empty(t, found["vg0/root"].Reason)
	require.Contains(t, found["vg0/far"].Reason, "which is on another disk")
	require.Contains(t, found["vg0/both"].Reason, "which is on another disk")
	require.Equal(t, int64(4*mib), found["vg0/far"].Size)

	image, err := os.ReadFile(first)
	require.NoError(t, err)
	damage(t, image[:8*mib], 300)
}

// TestLVMInPartitions: two physical volumes of one group on one disk, and a volume that is striped over them.
func TestLVMInPartitions(t *testing.T) {
	path := makeDisk(t, 128*mib)
	parts := []string{makeDisk(t, 40*mib), makeDisk(t, 40*mib)}
	l := newLVM(t, parts...)
	l.run("vgcreate", "-s", "1m", "vg1", l.devices[0], l.devices[1])
	l.create("-l", "8", "-i", "2", "-I", "64k", "-n", "striped", "vg1")
	l.create("-l", "60", "-n", "large", "vg1")
	images := map[string]string{l.devices[0]: parts[0], l.devices[1]: parts[1]}
	extents := l.fill("vg1/large", images)
	// A striped volume begins on its first device, and goes on with the second one after 64 KiB.
	ranges := strings.Fields(l.run("lvs", "--noheadings", "-o", "seg_pe_ranges", "vg1/striped"))
	require.Len(t, ranges, 2)
	for n, r := range ranges {
		device, _, _ := strings.Cut(r, ":")
		write(t, images[device], mib, map[int]string{0: mark, 1: "second"}[n])
	}
	tool(t, "label: gpt\nstart=1M, size=40M\nstart=41M, size=40M\nsize=3M\n", "sfdisk", "-q", path)
	for n, part := range parts {
		content, err := os.ReadFile(part)
		require.NoError(t, err)
		write(t, path, int64(1+40*n)*mib, string(content))
	}
	write(t, path, 81*mib, mark)
	found := byName(find(t, path))
	require.Len(t, found, 3)
	require.NotNil(t, found["3"].Content)
	large := found["vg1/large"]
	require.Empty(t, large.Reason)
	b := make([]byte, len(mark)+5)
	for e := range extents {
		_, err := large.Content.ReadAt(b, int64(e)*mib)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%s %4d", mark, e), string(b))
	}
	_, err := found["vg1/striped"].Content.ReadAt(b[:6], 64<<10)
	require.NoError(t, err)
	require.Equal(t, "second", string(b[:6]))
}
