package groupapi

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// FuzzRecord reads the record of a group. With what is accepted, the group can be made again.
func FuzzRecord(f *testing.F) {
	f.Add(`{"handle":"h","members":["a","b"],"driver":"d","class":"c","content":"n","namespace":"ns","name":"g","backupUID":"u","secrets":{"k":"v"}}`)
	f.Add(`{"handle":"h","members":[""]}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, text string) {
		var r Record
		var err error
		fuzztest.Document(t, len(text), func() { r, err = ParseRecord(text) })
		if err != nil {
			require.Zero(t, r)
			return
		}
		require.NotEmpty(t, r.Members)
		require.NotContains(t, append(r.Members, r.Handle, r.Driver, r.Content, r.Namespace, r.Name), "")
		written, err := json.Marshal(r)
		require.NoError(t, err)
		again, err := ParseRecord(string(written))
		require.NoError(t, err)
		rewritten, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(written), string(rewritten))
	})
}
