package disk

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

func TestParseText(t *testing.T) {
	s, err := parseText("vg {\nid = \"a\\\"b\" # comment\nlist = [\"x\", 3 , []]\nn=5\nf = 1.5\nempty {\n}\n}\n# end\nversion = 1\n\x00")
	require.NoError(t, err)
	vg := s.sections["vg"]
	require.Equal(t, `a"b`, vg.text("id"))
	require.True(t, vg.has("list", "x"))
	n, err := vg.number("n", 5)
	require.NoError(t, err)
	require.Equal(t, int64(5), n)
	_, err = vg.number("n", 4)
	require.ErrorIs(t, err, ErrDamaged)
	_, err = vg.number("id", 4)
	require.ErrorIs(t, err, ErrDamaged)
	require.Equal(t, []string{"empty"}, vg.names)
	for _, text := range []string{
		"a", "a =", "a = [", "a = [1", `a = "x`, `a = "x\`, "a {", "a }", "}", "= 1", "a = x", "{ }", "a = ]",
		strings.Repeat("a {", 100000), "a = " + strings.Repeat("[", 100000),
	} {
		_, err := parseText(text)
		require.ErrorIs(t, err, ErrDamaged, "%.20s", text)
	}
}

// TestVolumesThatCannotBeRead: LVM makes these only with the device mapper.
func TestVolumesThatCannotBeRead(t *testing.T) {
	const text = `vg {
id = "group"
seqno = 1
extent_size = 8
physical_volumes { pv0 { id = "a-b" pe_start = 0 pe_count = 100 } }
logical_volumes {
origin { status = ["VISIBLE"] segment1 { start_extent=0 extent_count=2 type="striped" stripe_count=1 stripes=["pv0", 0] } }
snap { status = ["VISIBLE"] segment1 { start_extent=0 extent_count=2 type="striped" stripe_count=1 stripes=["pv0", 2] } }
snapshot0 { status = [] segment1 { start_extent=0 extent_count=2 type="snapshot" origin="origin" cow_store="snap" } }
pool_tdata { status = [] segment1 { start_extent=0 extent_count=2 type="striped" stripe_count=1 stripes=["pv0", 0] } }
thin { status = ["VISIBLE"] segment1 { start_extent=0 extent_count=9 type="thin" thin_pool="pool" device_id=1 } }
gap { status = ["VISIBLE"] segment1 { start_extent=1 extent_count=2 type="striped" stripe_count=1 stripes=["pv0", 0] } }
outside { status = ["VISIBLE"] segment1 { start_extent=0 extent_count=2 type="striped" stripe_count=1 stripes=["pv0", 99] } }
huge { status = ["VISIBLE"] segment1 { start_extent=0 extent_count=4294967296 type="striped" stripe_count=1 stripes=["pv0", 0] } }
nowhere { status = ["VISIBLE"] segment1 { start_extent=0 extent_count=2 type="striped" stripe_count=1 stripes=["pv1", 0] } }
odd { status = ["VISIBLE"] segment1 { start_extent=0 extent_count=2 type="striped" stripe_count=2 stripe_size=0 stripes=["pv0", 0, "pv0", 4] } }
none { status = ["VISIBLE"] }
} }`
	v := &physicalVolume{id: "ab", size: 100 * 4096}
	require.NoError(t, v.take(text))
	parts, err := volumes{v}.parts()
	require.NoError(t, err)
	want := map[string]string{
		"vg/origin": "", "vg/snap": "it is a snapshot", "vg/thin": `kind "thin"`, "vg/gap": "have a gap", "vg/outside": "outside of",
		"vg/huge": "outside of", "vg/nowhere": "not in the group", "vg/odd": "stripes of 0 bytes", "vg/none": "no segments",
	}
	require.Len(t, parts, len(want))
	for _, p := range parts {
		require.Contains(t, p.Reason, want[p.Name])
		require.Equal(t, want[p.Name] == "", p.Reason == "", p.Reason)
		require.Equal(t, p.Reason == "", p.Content != nil)
	}
}

func FuzzParseText(f *testing.F) {
	f.Add("vg {\nid = \"a\"\nl = [\"x\", 3]\n}")
	f.Fuzz(func(t *testing.T, text string) {
		fuzztest.Document(t, len(text), func() {
			v := &physicalVolume{size: 1 << 30, content: bytes.NewReader(nil)}
			if v.take(text) != nil {
				return
			}
			parts, err := volumes{v}.parts()
			if err == nil {
				requireSound(t, parts, 1<<40)
			}
		})
	})
}
