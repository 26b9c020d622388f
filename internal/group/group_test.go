package group

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPlan(t *testing.T) {
	self := Volume{PVC: "b", Driver: "block", Bound: true, Ours: true}
	other := func(name string, change func(v *Volume)) Volume {
		v := self
		v.PVC = name
		change(&v)
		return v
	}
	as := func(*Volume) {}
	for name, test := range map[string]struct {
		volumes []Volume
		members []string
		leftOut []LeftOut
	}{
		"alone":       {nil, []string{"b"}, nil},
		"only itself": {[]Volume{self}, []string{"b"}, nil},
		"in order":    {[]Volume{other("c", as), self, other("a", as)}, []string{"a", "b", "c"}, nil},
		"strangers": {
			[]Volume{
				other("g", func(v *Volume) { v.Driver = "" }),
				other("f", func(v *Volume) { v.Driver = "alt" }),
				other("e", func(v *Volume) { v.Ours = false }),
				other("d", func(v *Volume) { v.Bound = false }),
				other("c", func(v *Volume) { v.Excluded = true }),
				other("a", as),
			},
			[]string{"a", "b"},
			[]LeftOut{
				{"c", "the backup excludes it"},
				{"d", "it is not bound"},
				{"e", "its volume policy does not give it to blockmover"},
				{"f", "it is of driver alt"},
				{"g", "it is no CSI volume"},
			},
		},
		"what is asked for counts, whatever is said of it now": {
			[]Volume{other("b", func(v *Volume) { v.Bound = false }), other("a", as)}, []string{"a", "b"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			members, leftOut := Plan(self, test.volumes)
			require.Equal(t, test.members, members)
			require.Equal(t, test.leftOut, leftOut)
		})
	}
}

func TestChooseClass(t *testing.T) {
	classes := []Class{
		{Name: "two", Driver: "many"},
		{Name: "one", Driver: "many"},
		{Name: "default", Driver: "many", Default: true},
		{Name: "only", Driver: "single"},
		{Name: "y", Driver: "unlabelled"},
		{Name: "x", Driver: "unlabelled"},
		{Name: "q", Driver: "defaults", Default: true},
		{Name: "p", Driver: "defaults", Default: true},
	}
	wish := func(class, source string) Wish { return Wish{Source: source, Class: class} }
	for name, test := range map[string]struct {
		driver string
		levels [][]Wish
		want   string
		err    string
	}{
		"default":       {driver: "many", want: "default"},
		"only":          {driver: "single", want: "only"},
		"no level":      {driver: "single", levels: [][]Wish{nil, {}}, want: "only"},
		"first level":   {driver: "many", levels: [][]Wish{{wish("one", "PVC a")}, {wish("two", "Backup")}}, want: "one"},
		"second level":  {driver: "many", levels: [][]Wish{nil, {wish("two", "Backup")}}, want: "two"},
		"they agree":    {driver: "many", levels: [][]Wish{{wish("one", "PVC a"), wish("one", "PVC b")}}, want: "one"},
		"they disagree": {driver: "many", levels: [][]Wish{{wish("one", "PVC a"), wish("two", "PVC b")}}, err: "one group cannot have several: one (PVC a), two (PVC b)"},
		"missing":       {driver: "many", levels: [][]Wish{{wish("on", "PVC a")}}, err: "on of PVC a does not exist"},
		"wrong driver":  {driver: "many", levels: [][]Wish{{wish("only", "Backup")}}, err: "only of Backup is of driver single"},
		"unlabelled":    {driver: "unlabelled", err: "there are 2 and none is labelled as default: x, y"},
		"two defaults":  {driver: "defaults", err: "2 are labelled as default, want one: p, q"},
		"none":          {driver: "unknown", err: ErrNoClass.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ChooseClass(test.driver, test.levels, classes)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
	_, err := ChooseClass("unknown", [][]Wish{{wish("only", "Backup")}}, classes)
	require.NotErrorIs(t, err, ErrNoClass, "somebody believes that there is one")
}
