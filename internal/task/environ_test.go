package task

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEnviron(t *testing.T) {
	for name, size := range map[string]int{"small": 0, "one bundle": 2 << 10, "of a company": 300 << 10, "as much as fits": 700 << 10} {
		t.Run(name, func(t *testing.T) {
			request := backupRequest()
			request.Version = Version
			request.Backup.Metadata.CACert = bytes.Repeat([]byte("x"), size)
			encoded, err := request.Encode()
			require.NoError(t, err)
			variables, err := Environ(encoded)
			require.NoError(t, err)
			environ := map[string]string{}
			for _, v := range variables {
				require.Less(t, len(v.Name)+len(v.Value), 128<<10-2, "MAX_ARG_STRLEN")
				environ[v.Name] = v.Value
			}
			lookup := func(name string) (string, bool) { value, ok := environ[name]; return value, ok }
			decoded, err := FromEnviron(lookup)
			require.NoError(t, err)
			if size == 0 {
				require.Len(t, variables, 1)
				return
			}
			require.Equal(t, request, decoded)

			delete(environ, variables[len(variables)-1].Name)
			_, err = FromEnviron(lookup)
			require.Error(t, err, "a variable is missing")
		})
	}
	_, err := Environ(string(make([]byte, maxRequestBytes+1)))
	require.ErrorContains(t, err, "shorten the CA bundle")
}
