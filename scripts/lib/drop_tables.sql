-- Drops all tables, sequences and types of this user in the schema public; scripts/restore.sh runs it in the transaction
-- that restores a backup.
set client_min_messages = warning;
do $$
declare
    found record;
begin
    for found in
        select format('drop table %I.%I cascade', schemaname, tablename) as statement
        from pg_tables where schemaname = 'public' and tableowner = current_user
    loop
        execute found.statement;
    end loop;
    for found in
        select format('drop sequence %I.%I cascade', schemaname, sequencename) as statement
        from pg_sequences where schemaname = 'public' and sequenceowner = current_user
    loop
        execute found.statement;
    end loop;
    for found in
        select format('drop type %I.%I cascade', nspname, typname) as statement
        from pg_type join pg_namespace on pg_namespace.oid = typnamespace
        where nspname = 'public' and typtype = 'e' and pg_get_userbyid(typowner) = current_user
    loop
        execute found.statement;
    end loop;
end
$$;
