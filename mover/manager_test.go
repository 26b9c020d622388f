package main

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
)

func TestAPIAudiences(t *testing.T) {
	encode := base64.RawURLEncoding.EncodeToString
	jwt := func(payload string) string {
		return encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode([]byte(payload)) + "." + encode([]byte("s")) + "\n"
	}
	for name, tc := range map[string]struct {
		token string
		want  string
		err   string
	}{
		"list":          {token: jwt(`{"aud":["https://issuer","k3s"]}`), want: "k3s"},
		"one":           {token: jwt(`{"aud":"https://issuer"}`), want: "https://issuer"},
		"certificate":   {want: "https://kubernetes.default.svc"},
		"opaque":        {token: "secret", want: "https://kubernetes.default.svc"},
		"no audience":   {token: jwt(`{}`), err: "has no audience"},
		"no claims":     {token: jwt(`[]`), err: "read service account token"},
		"not base64url": {token: "h.?.s", err: "read service account token"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			require.NoError(t, os.WriteFile(path, []byte(tc.token), 0o600))
			got, err := apiAudiences(&rest.Config{BearerTokenFile: path})
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Contains(t, got, tc.want)
		})
	}
	_, err := apiAudiences(&rest.Config{BearerTokenFile: filepath.Join(t.TempDir(), "none")})
	require.ErrorIs(t, err, os.ErrNotExist)
}
